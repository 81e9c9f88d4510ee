"""Which models and versions the gates apply to, by what the database and the files say."""
