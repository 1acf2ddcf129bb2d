"""What a setting is compared with at equal cost."""
