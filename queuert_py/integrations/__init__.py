"""What ties an engine to other libraries. Each module needs the extra of its name."""
