"""FlexOlmo: experts that were trained apart; norms come after attention and feed-forward."""
