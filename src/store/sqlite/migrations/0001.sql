-- Peaje's books, schema version 1. Open them with: sqlite3 -readonly books.sqlite3
--
-- Amounts are whole atomic units of the token, written as decimal text: they have up to 128 bits, and SQLite's integers
-- have 64. Times are Unix seconds. Ids are raw bytes; the views show them as 0x and hexadecimal digits.
--
-- Never write here by hand: rows are sealed, and the proxy refuses books whose seals do not match.

-- Whose books these are; one row.
CREATE TABLE book (
    only_row   INTEGER PRIMARY KEY CHECK (only_row = 1),
    chain_id   INTEGER NOT NULL,
    settlement BLOB NOT NULL,  -- the contract
    opened_at  INTEGER NOT NULL
) STRICT;

-- How far the chain was followed; at most one row.
CREATE TABLE cursor (
    only_row   INTEGER PRIMARY KEY CHECK (only_row = 1),
    next_block INTEGER NOT NULL,  -- the first that was not read
    seal       INTEGER NOT NULL
) STRICT;

-- The part of the terms that is the provider's and so nearly always the same.
CREATE TABLE terms (
    number              INTEGER PRIMARY KEY,
    receiver            BLOB NOT NULL,
    receiver_authorizer BLOB NOT NULL,
    token               BLOB NOT NULL,
    withdraw_delay      INTEGER NOT NULL,  -- seconds
    UNIQUE (receiver, receiver_authorizer, token, withdraw_delay)
) STRICT;

CREATE TABLE routes (
    number INTEGER PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE
) STRICT;

-- A channel's books, one row each. Other tables of many rows name a channel by its number: 4 bytes instead of 32.
CREATE TABLE channels (
    number              INTEGER PRIMARY KEY,
    version             INTEGER NOT NULL,  -- how often the row was written
    id                  BLOB NOT NULL UNIQUE,
    payer               BLOB NOT NULL,
    payer_authorizer    BLOB NOT NULL,
    salt                BLOB NOT NULL,
    terms_number        INTEGER NOT NULL REFERENCES terms (number),
    charged             TEXT NOT NULL,     -- in all
    max_claimable       TEXT,              -- of the latest voucher, if one is known
    signature           BLOB,              -- of the latest voucher
    view_block          INTEGER NOT NULL,  -- the block the chain was read at
    balance             TEXT NOT NULL,     -- deposits less refunds and withdrawals, at that block
    total_claimed       TEXT NOT NULL,     -- at that block
    withdrawal_amount   TEXT,              -- announced by the payer and not finished, at that block
    withdrawal_at       INTEGER,
    refund_nonce        TEXT NOT NULL,     -- of the next refund, at that block
    viewed_at           INTEGER NOT NULL,
    open_refund_nonce   TEXT,              -- a refund that was signed and may still be paid
    open_refund_amount  TEXT,
    last_deposit_salt   BLOB,              -- the last deposit that was relayed
    last_deposit_charged TEXT,             -- what was charged in all when it landed
    opened_at           INTEGER NOT NULL,
    changed_at          INTEGER NOT NULL,  -- the last booking, or view of the chain
    seal                INTEGER NOT NULL   -- CRC-32 of all that is above, terms included, number excluded
) STRICT;

-- What channels were charged, by minute and route. The key begins with the minute, so that what is written now is
-- together on few pages, and what is old is never touched again.
CREATE TABLE charges (
    minute         INTEGER NOT NULL,  -- when it began
    channel_number INTEGER NOT NULL REFERENCES channels (number),
    route_number   INTEGER NOT NULL REFERENCES routes (number),
    requests       INTEGER NOT NULL,
    amount         TEXT NOT NULL,
    PRIMARY KEY (minute, channel_number, route_number)
) STRICT, WITHOUT ROWID;

-- Changes of what a channel was charged in all that are no charge. At every moment a channel's charges and its
-- adjustments (sum_after - sum_before) add up to channels.charged.
CREATE TABLE adjustments (
    number         INTEGER PRIMARY KEY,
    at             INTEGER NOT NULL,
    channel_number INTEGER NOT NULL REFERENCES channels (number),
    sum_before     TEXT NOT NULL,
    sum_after      TEXT NOT NULL,
    why            TEXT NOT NULL  -- opened, claimed_elsewhere or claim_dropped
) STRICT;

-- Signed transactions, written before they are sent, and what became of them.
CREATE TABLE transactions (
    number              INTEGER PRIMARY KEY,
    hash                BLOB NOT NULL UNIQUE,
    sender              BLOB NOT NULL,
    nonce               INTEGER NOT NULL,
    signed_at           INTEGER NOT NULL,
    raw                 BLOB NOT NULL,     -- the signed bytes
    purpose             TEXT NOT NULL,     -- claim, settle, deposit or refund
    channel             BLOB,              -- deposit, refund
    amount              TEXT,              -- deposit, refund
    receiver            BLOB,              -- deposit, settle
    token               BLOB,              -- deposit, settle
    payer               BLOB,              -- deposit: the channel's terms
    payer_authorizer    BLOB,
    receiver_authorizer BLOB,
    withdraw_delay      INTEGER,
    channel_salt        BLOB,
    deposit_salt        BLOB,              -- deposit: its authorization
    valid_before        INTEGER,
    refund_nonce        TEXT,              -- refund
    seal                INTEGER NOT NULL,  -- CRC-32 of all that is above and the claim's rows, number excluded
    state               TEXT NOT NULL DEFAULT 'open'
                        CHECK (state IN ('open', 'mined', 'reverted', 'never_sent', 'given_up')),
    ended_at            INTEGER,
    block               INTEGER,
    gas_used            INTEGER,
    fee_wei             TEXT
) STRICT;

CREATE INDEX open_transactions ON transactions (state) WHERE state = 'open';

-- What a claim or refund claims of each channel: the total, claims before it included.
CREATE TABLE claim_rows (
    transaction_number INTEGER NOT NULL REFERENCES transactions (number),
    position           INTEGER NOT NULL,
    channel            BLOB NOT NULL,
    total_claimed      TEXT NOT NULL,
    PRIMARY KEY (transaction_number, position)
) STRICT, WITHOUT ROWID;

-- Money that transactions moved, by the contract's events.
CREATE TABLE movements (
    number             INTEGER PRIMARY KEY,
    at                 INTEGER NOT NULL,
    transaction_number INTEGER NOT NULL REFERENCES transactions (number),
    kind               TEXT NOT NULL,  -- deposited, claimed, refunded or settled
    channel            BLOB,           -- a settlement is of none
    amount             TEXT NOT NULL
) STRICT;

CREATE INDEX movements_of_transaction ON movements (transaction_number);

-- Every start of the proxy, and every commit that failed, as far as that could still be written.
CREATE TABLE starts (
    number  INTEGER PRIMARY KEY,
    at      INTEGER NOT NULL,
    version TEXT NOT NULL,    -- of the program
    process INTEGER NOT NULL
) STRICT;

CREATE TABLE incidents (
    number INTEGER PRIMARY KEY,
    at     INTEGER NOT NULL,
    what   TEXT NOT NULL
) STRICT;

-- For people. Sums are exact or NULL, never rounded: SQLite adds text as floats and fails where integers overflow, so a
-- sum is made only where all its amounts are so short, and so few, that 18 digits hold it. `peaje ledger` adds all.

CREATE VIEW books AS
SELECT '0x' || lower(hex(c.id)) AS channel,
       '0x' || lower(hex(c.payer)) AS payer,
       '0x' || lower(hex(t.receiver)) AS receiver,
       '0x' || lower(hex(t.token)) AS token,
       c.charged,
       c.total_claimed AS claimed,
       CASE WHEN max(length(c.charged), length(c.total_claimed)) <= 18
            THEN CAST(CAST(c.charged AS INTEGER) - CAST(c.total_claimed AS INTEGER) AS TEXT) END AS unclaimed,
       c.balance,
       c.withdrawal_amount AS withdrawing,
       strftime('%Y-%m-%dT%H:%M:%SZ', c.opened_at, 'unixepoch') AS opened,
       strftime('%Y-%m-%dT%H:%M:%SZ', c.changed_at, 'unixepoch') AS changed
FROM channels c JOIN terms t ON t.number = c.terms_number;

CREATE VIEW charge_lines AS
SELECT strftime('%Y-%m-%dT%H:%MZ', h.minute, 'unixepoch') AS minute,
       '0x' || lower(hex(c.payer)) AS payer,
       '0x' || lower(hex(c.id)) AS channel,
       r.name AS route,
       h.requests,
       h.amount
FROM charges h JOIN channels c ON c.number = h.channel_number JOIN routes r ON r.number = h.route_number;

CREATE VIEW earnings AS
SELECT date(h.minute, 'unixepoch') AS day,
       r.name AS route,
       sum(h.requests) AS requests,
       CASE WHEN max(length(h.amount)) + length(count(*)) <= 18
            THEN CAST(sum(CAST(h.amount AS INTEGER)) AS TEXT) END AS amount
FROM charges h JOIN routes r ON r.number = h.route_number
GROUP BY 1, 2;

CREATE VIEW adjustment_lines AS
SELECT strftime('%Y-%m-%dT%H:%M:%SZ', a.at, 'unixepoch') AS at,
       '0x' || lower(hex(c.payer)) AS payer,
       '0x' || lower(hex(c.id)) AS channel,
       a.sum_before,
       a.sum_after,
       a.why
FROM adjustments a JOIN channels c ON c.number = a.channel_number;

CREATE VIEW transaction_lines AS
SELECT strftime('%Y-%m-%dT%H:%M:%SZ', signed_at, 'unixepoch') AS signed,
       '0x' || lower(hex(hash)) AS hash,
       purpose,
       state,
       strftime('%Y-%m-%dT%H:%M:%SZ', ended_at, 'unixepoch') AS ended,
       '0x' || lower(hex(sender)) AS sender,
       nonce,
       block,
       gas_used,
       fee_wei
FROM transactions;

-- Fees are long numbers, so they are added in two halves, of 12 digits and of what is above those.
CREATE VIEW chain_costs AS
SELECT day, purpose, transactions, gas_used, fees_known,
       CASE WHEN fees_known = 0 OR longest - 12 + length(transactions) > 17 OR length(transactions) > 6 THEN NULL
            WHEN above + below / 1000000000000 = 0 THEN CAST(below AS TEXT)
            ELSE (above + below / 1000000000000) || printf('%012d', below % 1000000000000) END AS fee_wei
FROM (SELECT date(ended_at, 'unixepoch') AS day,
             purpose,
             count(*) AS transactions,
             sum(gas_used) AS gas_used,
             count(fee_wei) AS fees_known,
             max(length(fee_wei)) AS longest,
             sum(CASE WHEN length(fee_wei) BETWEEN 13 AND 30
                      THEN CAST(substr(fee_wei, 1, length(fee_wei) - 12) AS INTEGER) ELSE 0 END) AS above,
             sum(CAST(substr(fee_wei, -12) AS INTEGER)) AS below
      FROM transactions WHERE state IN ('mined', 'reverted') GROUP BY 1, 2);

CREATE VIEW movement_lines AS
SELECT strftime('%Y-%m-%dT%H:%M:%SZ', m.at, 'unixepoch') AS at,
       m.kind,
       CASE WHEN m.channel IS NOT NULL THEN '0x' || lower(hex(m.channel)) END AS channel,
       m.amount,
       '0x' || lower(hex(t.hash)) AS hash
FROM movements m JOIN transactions t ON t.number = m.transaction_number;
