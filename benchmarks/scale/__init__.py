"""What grows with the number of species and of files: registering, loading and verifying a bundle, listing a URI."""
