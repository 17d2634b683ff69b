"""What a data set is worth: measures of its recordings, copies and shortcuts in it, and a report on all that."""
