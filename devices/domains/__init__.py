"""Groups of several domains: each domain's own collectives inside, messages between, in pieces that overlap."""

from devices.domains.opening import open_domains as open_domains
