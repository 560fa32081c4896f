"""The report as people read it: a page with plots, and a table in a terminal."""
