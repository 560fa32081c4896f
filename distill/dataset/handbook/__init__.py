"""What the company has written down: its articles, the search in them, and the teacher that answers out of them."""
