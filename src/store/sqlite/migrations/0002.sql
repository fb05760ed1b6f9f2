-- Version 2: how long something has been unclaimed, and transactions that were replaced by another with their nonce.

-- SQLite has no statement that widens a CHECK; this is the way its documentation describes. Nothing that was allowed
-- before is forbidden now, so no row has to be looked at.
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(sql, '''never_sent'', ''given_up''', '''never_sent'', ''replaced'', ''given_up''')
WHERE type = 'table' AND name = 'transactions';
PRAGMA writable_schema = RESET;

-- Since when something is charged and not claimed. Not sealed: it says when to claim, not how much.
ALTER TABLE channels ADD COLUMN unclaimed_since INTEGER;
