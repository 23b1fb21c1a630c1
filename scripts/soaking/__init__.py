"""Mixed traffic with injected faults for a long time: nothing may grow, nothing may be lost."""
