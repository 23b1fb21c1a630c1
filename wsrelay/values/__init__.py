"""Values: the data, names and limits that everything else is built on, without I/O of their own."""
