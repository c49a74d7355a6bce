"""Worker processes: how they start, what they exchange with their parent, and how they end."""
