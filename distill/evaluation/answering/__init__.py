"""How students are asked, and what serving them takes."""
