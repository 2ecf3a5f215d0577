"""What serving engines really compute with an exported model; one file an engine (docs/serving.md has the sources)."""
