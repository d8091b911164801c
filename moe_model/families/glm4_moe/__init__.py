"""GLM-4.5 and 4.6: grouped-query attention, shared experts, experts chosen by corrected sigmoids."""
