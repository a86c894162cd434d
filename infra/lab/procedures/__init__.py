"""Published rotation procedures, run step by step against a lab to see what they drop."""
