"""Who listens: sessions, which outlive their connections, and the connections that they use."""
