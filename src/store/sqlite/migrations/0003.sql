-- Version 3: several requests of one channel in flight.

-- The highest ceiling that was used while several requests were in flight, where it is above what was charged: no voucher
-- up to it is taken any more. Sealed where it is there; without it a row's seal is what it was in version 2.
ALTER TABLE channels ADD COLUMN spent_up_to TEXT;
