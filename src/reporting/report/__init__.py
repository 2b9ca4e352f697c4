"""results/<suite>/report.html: one page that shows whether the claims hold, and the index beside it."""
