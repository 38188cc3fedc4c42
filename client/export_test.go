package client

// Target is where the client connects to.
func (c *Client) Target() string { return c.conn.Target() }
