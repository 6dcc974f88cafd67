"""The paper reproduced: experiments at a profile's scale, their records, the paper's claims, and the report of them."""
