"""Methods that learned masks are compared with: random, magnitude and Taylor scores, and the predecessor FFW."""
