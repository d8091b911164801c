"""The report's figures: each is drawn where the results have what it shows."""
