"""Who listens: sessions, which outlive nothing but their jobs' patience, and the connections they use."""
