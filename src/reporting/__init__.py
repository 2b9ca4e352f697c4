"""Tables, figures and claims: functions of the JSON results and of the published numbers; no model is loaded."""
