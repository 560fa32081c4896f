"""The student's servers: kept up, loaded with what the record wants, checked with real prompts before they are believed."""
