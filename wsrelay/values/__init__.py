"""Values: data, names and limits that everything else is built from; no I/O of their own."""
