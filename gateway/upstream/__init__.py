"""Where key managers live."""
