"""What customers and operators see: the chat page, the console, and the student that answers."""
