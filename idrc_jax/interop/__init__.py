"""Networks and results of other projects: in and out."""
