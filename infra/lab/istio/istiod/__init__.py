"""The lab's istiod: its certificate authority and what it distributes, by the rules of each version."""
