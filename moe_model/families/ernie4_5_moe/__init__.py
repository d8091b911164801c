"""ERNIE 4.5: a corrected choice of experts beside shared ones, after layers that have none."""
