"""Factors that others published, read into our values: tables of numbers and Hugging Face configs."""
