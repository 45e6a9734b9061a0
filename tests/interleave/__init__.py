"""Operations of the engine against each other on a real PostgreSQL, one statement at a time, in every order."""
