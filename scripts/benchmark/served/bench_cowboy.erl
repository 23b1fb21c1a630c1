%% A room in cowboy: every connection is an Erlang process, and all are in one pg group.
-module(bench_cowboy).
-export([start/1, init/2, websocket_init/1, websocket_handle/2, websocket_info/2]).

start(Port) ->
    {ok, _} = application:ensure_all_started(cowboy),
    {ok, _} = pg:start(pg),
    Routes = cowboy_router:compile([{'_', [{"/ws", ?MODULE, []}]}]),
    {ok, _} = cowboy:start_clear(bench,
        #{socket_opts => [{ip, {127, 0, 0, 1}}, {port, Port}, {backlog, 2048}],
          max_connections => infinity},
        #{env => #{dispatch => Routes}}).

init(Request, State) ->
    {cowboy_websocket, Request, State, #{idle_timeout => infinity}}.

websocket_init(State) ->
    ok = pg:join(room, self()),
    {ok, State}.

websocket_handle({text, Text}, State) ->
    [Pid ! {say, Text} || Pid <- pg:get_members(room)],
    {ok, State};
websocket_handle(_, State) ->
    {ok, State}.

websocket_info({say, Text}, State) ->
    {[{text, Text}], State};
websocket_info(_, State) ->
    {ok, State}.
