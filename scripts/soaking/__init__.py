"""Mixed traffic with faults for a long time: nothing may grow, nothing may be lost."""
