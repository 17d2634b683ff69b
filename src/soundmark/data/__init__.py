"""What a data set is worth: measures of its recordings, copies in it, shortcuts through it, and a report on all that."""
