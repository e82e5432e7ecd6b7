"""A real Kinto server for the tests, with the parts of Remote Settings that Kinto itself does not have."""
