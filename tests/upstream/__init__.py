"""Where key managers live: sessions, pools, slots, and what looks after them."""
