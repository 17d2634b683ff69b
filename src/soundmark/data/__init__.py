"""What is made of a data set before training: reports on it, clean copies of it, features, synthetic sets."""
