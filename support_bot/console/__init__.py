"""The operators' console, one module a tab."""
