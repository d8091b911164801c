"""MiniMax-M2: queries and keys normed as a whole, experts chosen by corrected sigmoids."""
