"""The whole path as one resumable run: recipes, the order of their stages, and what carries them out."""
