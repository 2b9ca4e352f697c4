"""results/<suite>/report.html: one page that shows what was run and whether the claims hold, and the index beside it."""
