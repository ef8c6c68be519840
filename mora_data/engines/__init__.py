"""Who answers a request."""
