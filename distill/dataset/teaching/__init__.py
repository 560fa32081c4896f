"""What `teach` is made of: requests and their teachers, pace, money, transports."""
