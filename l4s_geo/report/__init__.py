"""A map to look at: one page that needs nothing from elsewhere, and a picture for mails and slides."""
