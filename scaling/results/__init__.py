"""What observations become: intervals, tables, a report, comparisons, and files for other projects."""
