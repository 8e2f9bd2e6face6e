"""Where the accuracy of a compressed file is lost, against the dense file, whoever compressed it."""
