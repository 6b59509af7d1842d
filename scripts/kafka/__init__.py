"""A real Kafka for tests and development: a broker of its own, made of the artifacts that pom.xml names."""
