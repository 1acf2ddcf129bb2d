"""What a measurement looks like: rows, tables and plots; nothing here needs torch."""
