"""What is learnt from a hidden state: the answer's words, what the teacher believed beside them, and how a local teacher looks."""
