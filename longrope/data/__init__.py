"""Documents into long samples."""
